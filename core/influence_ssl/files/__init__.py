"""Files: what is read, from folders of images to tables of scores, and how all of it is written."""
