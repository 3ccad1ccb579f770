"""The actions of `treadle models` that move files of models: pull, push, copy and import."""
