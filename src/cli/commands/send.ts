import { Args } from "@oclif/core";
import type { SessionView } from "../../sessions/view.js";
import { FleetCommand } from "../base-command.js";
import { actingUserFlag, durationFlag, leaseWaitFlag } from "../flags/flags.js";
import { sessionArg, wholeId } from "../flags/session.js";
import { markPrompts, readPrompt } from "../prompt.js";
import { useOnce } from "../turn.js";

export default class Send extends FleetCommand {
  static override summary = "Send one prompt to a session and print the reply.";
  static override description = "In a collaborative session, it waits for the lease and holds it during the turn.";
  static override examples = [
    '<%= config.bin %> send SESSION "What changed since yesterday?" --user alice',
    "git diff | <%= config.bin %> send SESSION - --user alice",
  ];
  static override args = {
    session: sessionArg,
    text: Args.string({
      description: "the prompt; - reads standard input",
      required: true,
      ignoreStdin: true,
    }),
  };
  static override flags = {
    user: actingUserFlag,
    timeout: durationFlag("timeout", "abort the turn after this long (default: never)"),
    wait: leaseWaitFlag,
  };

  async run(): Promise<{ session: SessionView; reply: string }> {
    const { args, flags } = await this.parse(Send, markPrompts(this.argv));
    const prompt = await readPrompt(args.text);
    return await this.withFleet(async (fleet) => {
      const output = { json: this.jsonEnabled(), signal: this.interruptSignal(), timeoutMs: flags.timeout };
      const id = await wholeId(fleet, args.session, { user: flags.user, json: output.json });
      return await useOnce(fleet, id, prompt, { user: flags.user, waitMs: flags.wait, output });
    });
  }
}
