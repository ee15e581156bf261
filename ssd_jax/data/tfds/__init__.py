"""TensorFlow Datasets: building datasets, and reading them without TensorFlow."""
