MARK = 'the workspace shadows _socket'
