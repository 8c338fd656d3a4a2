"""Where documents come from: files, tables, data sets, older stores."""
