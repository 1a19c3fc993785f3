MARK = 'the workspace shadows random'
