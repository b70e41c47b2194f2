"""Beyond images: W without and with a trigger on tables, texts and tones."""
