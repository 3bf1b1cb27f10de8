"""Stage `release`: folder and archive of the deployable artifacts."""
