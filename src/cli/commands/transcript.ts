import { once } from "node:events";
import { Flags } from "@oclif/core";
import type { Transcript as Conversation } from "../../hosts/options.js";
import { FleetCommand } from "../base-command.js";
import { actingUserFlag, given, integerFlag } from "../flags/flags.js";
import { sessionArg, wholeId } from "../flags/session.js";
import { MarkdownTranscript, PlainTranscript } from "../render/transcript.js";

export default class Transcript extends FleetCommand {
  static override summary = "Print the conversation of a session.";
  static override description =
    "Reads the history on disk and starts no server. Also works during a turn. Only the owner and the members may read it.";
  static override examples = [
    "<%= config.bin %> transcript SESSION --user alice -n 5",
    "<%= config.bin %> transcript SESSION --user alice --markdown > conversation.md",
  ];
  static override args = { session: sessionArg };
  static override flags = {
    user: actingUserFlag,
    markdown: Flags.boolean({ description: "print a Markdown document" }),
    turns: integerFlag("turns", "how many of the last turns to print (default: all)", [0, 1_000_000], { char: "n" }),
    follow: Flags.boolean({ char: "f", description: "keep printing what is added until interrupted" }),
  };

  async run(): Promise<Conversation> {
    const { args, flags } = await this.parse(Transcript);
    const { user, follow } = flags;
    const options = { user, ...given({ turns: flags.turns }), signal: this.interruptSignal() };
    return await this.withFleet(async (fleet) => {
      const json = this.jsonEnabled();
      const id = await wholeId(fleet, args.session, { user, json, reads: true });
      if (json) return await fleet.sessions.transcript(id, options);
      const session = await fleet.sessions.get(id, { user });
      const render = flags.markdown ? new MarkdownTranscript() : new PlainTranscript();
      let isEmpty = true;
      for await (const entry of fleet.sessions.followTranscript(id, { ...options, follow })) {
        await print((isEmpty ? render.heading(session) : "") + render.entry(entry), options.signal);
        isEmpty = false;
      }
      options.signal.throwIfAborted();
      if (isEmpty && flags.turns !== 0) process.stderr.write("The session has had no turn.\n");
      return { session, entries: [] };
    });
  }
}

/** Prints the text. Waits if the reader of the output is slow, so that a conversation does not pile up in memory. */
async function print(text: string, signal: AbortSignal): Promise<void> {
  if (!process.stdout.write(text)) await once(process.stdout, "drain", { signal });
}
