"""What is measured of images, of scores and of rankings, each with its interval."""
