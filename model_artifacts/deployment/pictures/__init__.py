"""Pictures that callers hand over, read as an artifact takes them."""
