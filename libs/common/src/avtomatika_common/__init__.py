"""Avtomatika."""
