MARK = 'the workspace shadows os'
