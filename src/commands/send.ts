import { text } from "node:stream/consumers";
import { Args } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import { durationFlag, requiredUserFlag, sessionArg, usage } from "../cli/flags.js";
import { printTurn } from "../cli/turn.js";
import type { SessionView } from "../sessions/view.js";

export default class Send extends FleetCommand {
  static override summary = "Send one prompt to a session and print the reply.";
  static override examples = [
    '<%= config.bin %> send SESSION "What changed since yesterday?" --user alice',
    "git diff | <%= config.bin %> send SESSION - --user alice",
  ];
  static override args = {
    session: sessionArg,
    text: Args.string({
      description: "the prompt; - reads it from standard input",
      required: true,
      ignoreStdin: true,
    }),
  };
  static override flags = {
    user: requiredUserFlag,
    timeout: durationFlag("timeout", "give up and abort the turn after this long (default: never)"),
  };

  async run(): Promise<{ session: SessionView; reply: string }> {
    const { args, flags } = await this.parse(Send);
    const prompt = args.text === "-" ? await text(process.stdin) : args.text;
    if (prompt.trim() === "") throw usage("The prompt is empty: text is needed, as TEXT or on standard input with -.");
    return await this.withFleet(async (fleet) => {
      const signal = this.interruptSignal();
      const session = await fleet.resumeSession(args.session, { user: flags.user });
      const reply = await printTurn(fleet, session, prompt, {
        json: this.jsonEnabled(),
        signal,
        ...(flags.timeout === undefined ? {} : { timeoutMs: flags.timeout }),
      });
      await fleet.leaveSession(session);
      return { session: await fleet.sessionOf(args.session, flags.user), reply };
    });
  }
}
