MINE = 'config of the workspace'
