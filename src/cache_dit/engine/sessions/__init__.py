"""Whose call it is: the request, the branch and the step of each call."""
