"""TensorFlow Datasets: building data sets, and reading them without TensorFlow."""
