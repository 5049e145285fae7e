export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof SHELLS)[number];

/** If `autocomplete` prints this, the shell completes file names. Because of the colon, this cannot be an id. */
export const FILES = ":files";

/**
 * The completion script for each shell. At each press of Tab, a script asks `autocomplete` for candidates. It discards
 * error messages, so that only candidates appear at the prompt. It inserts candidates as text, which the shell never
 * evaluates.
 */
export const SCRIPTS: Readonly<Record<Shell, string>> = {
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
