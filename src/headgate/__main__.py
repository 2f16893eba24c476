from headgate.cli.main import main

main()
