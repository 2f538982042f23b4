"""Raw data in, records out: readers (`sources`), downloads, and the parallel builder (`build`)."""
