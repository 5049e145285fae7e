import { FleetCommand } from "../cli/base-command.js";
import { chat } from "../cli/chat.js";
import { promptFlag, requiredUserFlag, sessionArg } from "../cli/flags.js";
import { printTurn } from "../cli/turn.js";
import type { SessionView } from "../sessions/view.js";

export default class Resume extends FleetCommand {
  static override summary = "Open a session again: with a prompt for one turn, on a terminal without one to chat.";
  static override examples = [
    '<%= config.bin %> resume SESSION --user alice --prompt "Go on"',
    "<%= config.bin %> resume SESSION --user alice",
  ];
  static override args = { session: sessionArg };
  static override flags = {
    user: requiredUserFlag,
    prompt: promptFlag("prompt to send"),
  };

  async run(): Promise<{ session: SessionView; reply: string | null }> {
    const { args, flags } = await this.parse(Resume);
    return await this.withFleet(async (fleet) => {
      const session = await fleet.resumeSession(args.session, { user: flags.user });
      const output = { json: this.jsonEnabled(), signal: this.interruptSignal() };
      let reply: string | null = null;
      if (flags.prompt !== undefined) reply = await printTurn(fleet, session, flags.prompt, output);
      else if (!output.json && process.stdin.isTTY === true && process.stdout.isTTY === true) {
        await chat(fleet, session, output.signal);
      } else this.log(session.sessionId);
      await fleet.leaveSession(session);
      return { session: await fleet.sessionOf(args.session, flags.user), reply };
    });
  }
}
