"""Writing a trained DRCN for others to run: TFLite files for devices, SavedModels for TensorFlow Serving."""
