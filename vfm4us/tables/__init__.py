"""Tables of results: what there is to run, who runs it, what no encoder may have seen, what is written."""
