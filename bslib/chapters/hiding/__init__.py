"""Beyond the paper: an attacker who hides the backdoor from W."""
