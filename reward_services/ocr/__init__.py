"""The OCR reward: does the image show the text its prompt quotes?"""
