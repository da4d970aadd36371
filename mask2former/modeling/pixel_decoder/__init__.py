"""Pixel decoders: backbone features in; mask features at 1/4 and the levels the queries attend to out."""
