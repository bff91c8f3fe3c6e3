"""SelfExtend for whole-document question answering."""
