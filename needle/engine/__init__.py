"""Answers: one decode loop under the grammar, tools chosen among many, where values were copied from."""
