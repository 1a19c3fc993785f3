MARK = 'the workspace shadows json'
