"""Stage `data`: calibration images, validation images and the FP32 reference."""
