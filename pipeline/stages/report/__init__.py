"""Stage `report`: comparison and report.html."""
