"""The registry: runs, model versions and their aliases. The only room that imports mlflow."""
