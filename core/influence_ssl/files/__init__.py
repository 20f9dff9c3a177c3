"""Reading and writing files, from folders of images to tables of scores."""
