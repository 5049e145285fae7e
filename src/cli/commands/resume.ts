import type { SessionView } from "../../sessions/view.js";
import { FleetCommand } from "../base-command.js";
import { actingUserFlag, leaseWaitFlag, promptFlag } from "../flags/flags.js";
import { sessionArg, wholeId } from "../flags/session.js";
import { canChat, markPrompts, readPrompt } from "../prompt.js";
import { useOnce } from "../turn.js";

export default class Resume extends FleetCommand {
  static override summary = "Resume a session: send one prompt, or chat if run on a terminal without --prompt.";
  static override examples = [
    '<%= config.bin %> resume SESSION --user alice --prompt "Go on"',
    "<%= config.bin %> resume SESSION --user alice",
  ];
  static override args = { session: sessionArg };
  static override flags = {
    user: actingUserFlag,
    prompt: promptFlag("prompt to send; prints its reply"),
    wait: leaseWaitFlag,
  };

  async run(): Promise<{ session: SessionView; reply: string | null }> {
    const { args, flags } = await this.parse(Resume, markPrompts(this.argv));
    const prompt = flags.prompt === undefined ? undefined : await readPrompt(flags.prompt);
    return await this.withFleet(async (fleet) => {
      const output = { json: this.jsonEnabled(), signal: this.interruptSignal() };
      const id = await wholeId(fleet, args.session, { user: flags.user, json: output.json });
      if (prompt !== undefined) {
        return await useOnce(fleet, id, prompt, { user: flags.user, waitMs: flags.wait, output });
      }
      if (!output.json && canChat()) {
        const { chat } = await import("../chat/chat.js");
        await chat(fleet, { user: flags.user }, { sessionId: id, signal: output.signal });
        return { session: await fleet.sessions.get(id, { user: flags.user }), reply: null };
      }
      using _ = this.progress("Opening the session");
      const session = await fleet.sessions.resume(id, { user: flags.user });
      this.log(session.sessionId);
      return { session: await fleet.sessions.leave(session, { park: true }), reply: null };
    });
  }
}
