"""Stage `manifest`: status of all artifacts, in manifest.json."""
