"""What the supervisor keeps of the client's files: names and attributes, blocks read ahead, writes that are under way. Sans-IO."""
