"""Decides where AI agents may connect: header, policy and kernel, each holding alone."""
