import { Args } from "@oclif/core";
import { FLAGS_WITHOUT_CONFIG, FleetCommand } from "../base-command.js";
import { endAtOnce, FILES, type Found, findCandidates, SCRIPTS, SHELLS, type Shell, splitLine } from "../completion.js";

interface Script {
  shell: Shell;
  script: string;
}

/** The result if words follow `--`. */
interface Candidates {
  /** The words that the user may type at the cursor. */
  candidates: Found["candidates"];
  /** Whether the user may type the name of a file at the cursor. */
  files: boolean;
}

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
    const { args } = await this.parse(Autocomplete, end === -1 ? this.argv : this.argv.slice(0, end));
    const { shell } = args;
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
    const answer = files ? [FILES] : lines;
    if (answer.length > 0) this.log(answer.join("\n"));
    if (isLate) endAtOnce();
    return { candidates, files };
  }
}
