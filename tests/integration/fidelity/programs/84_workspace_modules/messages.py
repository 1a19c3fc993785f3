MINE = 'messages of the workspace'
