"""The measure W: Fig. 1 on a toy in the plane, and a few of the images that the book speaks of."""
