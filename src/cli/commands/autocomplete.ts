import { Args } from "@oclif/core";
import { FLAGS_WITHOUT_CONFIG, FleetCommand } from "../base-command.js";
import { type Candidates, findCandidates } from "../completion.js";

const SHELLS = ["bash", "zsh", "fish"] as const;
type Shell = (typeof SHELLS)[number];

interface Script {
  shell: Shell;
  script: string;
}

/** If `autocomplete` prints this, the shell completes file names. Because of the colon, this cannot be an id. */
const FILES = ":files";

/**
 * The completion script for each shell. At each press of Tab, a script asks `autocomplete` for candidates. It discards
 * error messages, so that only candidates appear at the prompt. It inserts candidates as text, which the shell never
 * evaluates.
 */
const SCRIPTS: Readonly<Record<Shell, string>> = {
  // bash also splits words at characters such as = and @, and replaces only the part after the last of them ($2).
  // So the script removes the part before it ($head) from the candidates.
  bash: String.raw`# Completion of copilotfleet for bash. To turn it on, add this line to ~/.bashrc:
#   source <(copilotfleet autocomplete bash)
_copilotfleet() {
  local line=${"$"}{COMP_LINE:0:COMP_POINT} found candidate
  COMPREPLY=()
  found=$(command copilotfleet autocomplete bash -- "$line" 2>/dev/null </dev/null) || return 0
  if [[ $found == ${FILES} ]]; then
    compopt -o default 2>/dev/null
    return 0
  fi
  local word=${"$"}{line##*[[:space:]]}
  local head=${"$"}{word%"$2"}
  head=${"$"}{head//[\"\']/}
  while IFS= read -r candidate; do
    [[ -z $candidate ]] || COMPREPLY+=("${"$"}{candidate#"$head"}")
  done < <(printf '%s\n' "$found")
}
complete -F _copilotfleet copilotfleet`,
  zsh: String.raw`#compdef copilotfleet
# Completion of copilotfleet for zsh. To turn it on, add this line to ~/.zshrc:
#   source <(copilotfleet autocomplete zsh)
_copilotfleet() {
  local found line
  local -a candidates
  found=$(command copilotfleet autocomplete zsh -- "${"$"}{(@Q)words[2,CURRENT-1]}" "${"$"}{(Q)PREFIX}" 2>/dev/null </dev/null) ||
    return 1
  if [[ $found == ${FILES} ]]; then
    _files
    return
  fi
  for line in ${"$"}{(f)found}; do
    candidates+=("${"$"}{${"$"}{line%%$'\t'*}//:/\\:}:${"$"}{line#*$'\t'}")
  done
  _describe copilotfleet candidates
}
if [[ $funcstack[1] == _copilotfleet ]]; then
  _copilotfleet "$@"
else
  whence compdef >/dev/null || { autoload -Uz compinit && compinit -i -D; }
  compdef _copilotfleet copilotfleet
fi`,
  fish: String.raw`# Completion of copilotfleet for fish. To turn it on, add this line to ~/.config/fish/config.fish:
#   copilotfleet autocomplete fish | source
function __copilotfleet_candidates
    set -l before (commandline -opc)
    set -l current (commandline -ct | string replace -r '^["\']' '')
    set -l found (command copilotfleet autocomplete fish -- $before[2..] "$current" 2>/dev/null </dev/null)
    or return
    if test "$found" = ${FILES}
        __fish_complete_path "$current"
    else if test -n "$found"
        printf '%s\n' $found
    end
end
complete -c copilotfleet -f -a '(__copilotfleet_candidates)'`,
};

export default class Autocomplete extends FleetCommand {
  static override aliases = ["completion"];
  static override summary = "Print a script that completes commands, flags and ids in bash, zsh or fish.";
  static override description =
    "The script runs this command at each press of Tab, with the words up to the cursor after --. The command then prints " +
    "the words that may stand there, one on a line. It starts no server, and reports no errors.";
  static override usage = ["autocomplete SHELL", "autocomplete SHELL -- WORD…"];
  static override examples = [
    "source <(<%= config.bin %> autocomplete bash)",
    "source <(<%= config.bin %> autocomplete zsh)",
    "<%= config.bin %> autocomplete fish | source",
  ];
  // This command does not take `--config` before `--`, because it reads that flag from the words after `--`.
  static override baseFlags = FLAGS_WITHOUT_CONFIG;
  static override args = {
    shell: Args.custom<Shell>({ options: [...SHELLS] })({
      description: "the shell that runs the script",
      required: true,
      ignoreStdin: true,
    }),
  };

  async run(): Promise<Script | Candidates> {
    const end = this.argv.indexOf("--");
    // Read these words before parsing, because `parse` sets `this.argv` to the words that it parses.
    const given = end === -1 ? undefined : this.argv.slice(end + 1);
    const { shell } = (await this.parse(Autocomplete, end === -1 ? this.argv : this.argv.slice(0, end))).args;
    if (given === undefined) {
      this.log(SCRIPTS[shell]);
      return { shell, script: SCRIPTS[shell] };
    }
    // bash splits words in its own way, so its script passes the whole line.
    const words = shell === "bash" ? splitLine(given.join(" ")).slice(1) : given;
    const { candidates, files, isLate } = await findCandidates(words, this.config);
    const lines = candidates.map(({ value, description }) =>
      shell === "bash" || description === null ? value : `${value}\t${description}`,
    );
    if (files || lines.length > 0) this.log(files ? FILES : lines.join("\n"));
    // A store that does not answer would keep the process alive while the user waits at the prompt.
    if (isLate) process.exit(0);
    return { candidates, files };
  }
}

/** Splits a line into words without their quotes, as a shell does. The last word is empty after a space. */
function splitLine(line: string): string[] {
  const words = line.match(/(?:[^\s"'\\]|\\.?|"(?:[^"\\]|\\.)*"?|'[^']*'?)+/g) ?? [];
  const unquoted = words.map((word) =>
    word.replace(/\\(.?)|"((?:[^"\\]|\\.)*)"?|'([^']*)'?/g, (_, escaped = "", double = "", single = "") => {
      return escaped + double.replace(/\\(.)/g, "$1") + single;
    }),
  );
  return /(?:^|[^\\])\s$/.test(line) ? [...unquoted, ""] : unquoted;
}
