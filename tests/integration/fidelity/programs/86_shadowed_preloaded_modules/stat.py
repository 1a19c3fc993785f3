MARK = 'the workspace shadows stat'
