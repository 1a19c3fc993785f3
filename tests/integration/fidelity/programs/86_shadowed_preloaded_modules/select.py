MARK = 'the workspace shadows select'
