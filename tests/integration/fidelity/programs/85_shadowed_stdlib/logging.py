MARK = 'the workspace shadows logging'
