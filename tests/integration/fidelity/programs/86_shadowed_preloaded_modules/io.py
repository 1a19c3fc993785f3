MARK = 'the workspace shadows io'
