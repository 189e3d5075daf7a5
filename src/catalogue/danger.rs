//! Command lines and variables that would run code of somebody else's choice.
//!
//! An operator who means well still writes `sh -c`; then a parameter is a script. So these are
//! refused in entries too, where it costs an operator a small program of their own.

use std::path::{Component, Path};

/// Programs that run what they are given.
const SHELLS: [&str; 24] = [
    "sh",
    "bash",
    "dash",
    "zsh",
    "ash",
    "ksh",
    "fish",
    "csh",
    "tcsh",
    "busybox",
    "cmd",
    "cmd.exe",
    "powershell",
    "pwsh",
    "env",
    "xargs",
    "sudo",
    "su",
    "doas",
    "nohup",
    "setsid",
    "ssh",
    "eval",
    "script",
];

/// Options of interpreters and launchers whose value is code, or a file that is run first.
const CODE: [&str; 16] = [
    "-c",
    "-e",
    "-p",
    "-r",
    "-S",
    "-x",
    "--call",
    "--eval",
    "--print",
    "--require",
    "--import",
    "--loader",
    "--experimental-loader",
    "--node-options",
    "--shell-auto-fallback",
    "--inspect",
];

/// Programs to which these options mean that.
const INTERPRETERS: [&str; 9] = ["node", "nodejs", "bun", "deno", "perl", "ruby", "php", "lua", "luajit"];
/// Programs that bring a package and run it; their options may have their value behind them.
const LAUNCHERS: [&str; 7] = ["npx", "npm", "bunx", "uvx", "uv", "pipx", "pnpm"];
/// Of their options, those without a value.
const FLAGS: [&str; 10] = [
    "-y",
    "--yes",
    "-q",
    "--quiet",
    "--offline",
    "--isolated",
    "--refresh",
    "--silent",
    "--native-tls",
    "--managed-python",
];
/// Words before the script or package.
const SUBCOMMANDS: [&str; 7] = ["run", "exec", "x", "tool", "dlx", "i", "install"];

/// Variables by which a loader or an interpreter is made to run something else.
const HOOKS: [&str; 17] = [
    "NODE_OPTIONS",
    "NODE_PATH",
    "BASH_ENV",
    "ENV",
    "SHELLOPTS",
    "PROMPT_COMMAND",
    "IFS",
    "PERL5OPT",
    "PERL5LIB",
    "RUBYOPT",
    "RUBYLIB",
    "JAVA_TOOL_OPTIONS",
    "GCONV_PATH",
    "PATH",
    "GIT_SSH_COMMAND",
    "EDITOR",
    "PAGER",
];
const HOOK_FAMILIES: [&str; 8] =
    ["LD_", "DYLD_", "PYTHON", "NPM_CONFIG_", "UV_", "PIP_", "GIT_CONFIG", "GRISTMILL"];

/// Refuses a command line that runs code it is given.
pub fn command(command: &str, arguments: &[String]) -> Result<(), String> {
    let path = Path::new(command);
    let plain = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
    let has_folder = command.contains('/');
    if command.is_empty() || (has_folder && !path.is_absolute()) || !path.components().all(plain) {
        return Err(format!("{command:?} is neither an absolute path nor the name of a program"));
    }
    if command.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("the command is one program; arguments stand in `arguments`".to_owned());
    }
    let program = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
    if SHELLS.contains(&&*program) {
        return Err(format!("{program} runs whatever it is given"));
    }
    if arguments.iter().any(|argument| argument.contains('\0')) {
        return Err("an argument holds a NUL".to_owned());
    }
    let launcher = LAUNCHERS.contains(&&*program);
    if launcher
        || INTERPRETERS.contains(&&*program)
        || program.starts_with("python")
        || program.starts_with("pypy")
    {
        return runs(&program, launcher, arguments);
    }
    Ok(())
}

/// Looks at what an interpreter or launcher is told, up to the script or package: what follows that
/// is the script's own business.
fn runs(program: &str, launcher: bool, arguments: &[String]) -> Result<(), String> {
    let mut left = arguments.iter();
    while let Some(argument) = left.next() {
        if super::place(argument).is_some() {
            return Err(format!("{argument} would choose what {program} runs"));
        }
        if !argument.starts_with('-') {
            if SUBCOMMANDS.contains(&&**argument) {
                continue;
            }
            return Ok(());
        }
        let name = argument.split('=').next().unwrap_or(argument);
        // `-cCODE` and `-pe` are options with their value, or several in one.
        let short =
            !argument.starts_with("--") && CODE.iter().any(|code| code.len() == 2 && glued(argument, code));
        if CODE.contains(&name) || short {
            return Err(format!("{program} {name} runs what follows it as code"));
        }
        let module = argument == "-m" && !launcher;
        let has_value =
            launcher && !argument.contains('=') && !FLAGS.contains(&name) && !name.starts_with("--no-");
        if module || has_value {
            match left.next() {
                Some(value) if super::place(value).is_none() && module => return Ok(()),
                Some(value) if super::place(value).is_none() => {}
                _ => return Err(format!("{name} would choose what {program} runs")),
            }
        }
    }
    Err(format!("{program} is given nothing to run"))
}

/// Whether a single-dash argument holds the option's letter.
fn glued(argument: &str, option: &str) -> bool {
    argument.len() > 2 && argument[1..].contains(&option[1..])
}

/// Refuses a variable that makes a program run something else, or that is ours.
pub fn variable(name: &str) -> Result<(), String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if name.is_empty() || !name.bytes().all(word) || name.as_bytes()[0].is_ascii_digit() {
        return Err(format!("{name:?} is no name of a variable"));
    }
    let upper = name.to_uppercase();
    if HOOKS.contains(&&*upper) || HOOK_FAMILIES.iter().any(|family| upper.starts_with(family)) {
        return Err(format!("{name} decides what a program runs, and is not set for servers"));
    }
    Ok(())
}
