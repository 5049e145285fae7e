import { Flags } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import { modelFlag, promptFlag, requiredUserFlag, sessionIdFlag, ttlFlag } from "../cli/flags.js";
import { printTurn } from "../cli/turn.js";
import type { SessionView } from "../sessions/view.js";

export default class Create extends FleetCommand {
  static override summary = "Create a session for a user and print its id.";
  static override examples = [
    "<%= config.bin %> create --user alice",
    '<%= config.bin %> create --user alice --purpose review --prompt "Hello"',
  ];
  static override flags = {
    user: requiredUserFlag,
    id: sessionIdFlag,
    purpose: Flags.string({ description: "what it is for; begins a random id", helpValue: "TEXT" }),
    model: modelFlag,
    prompt: promptFlag("first prompt to send; its reply is printed after the id"),
    ttl: ttlFlag,
  };

  async run(): Promise<{ session: SessionView; reply: string | null }> {
    const { flags } = await this.parse(Create);
    return await this.withFleet(async (fleet) => {
      const session = await fleet.createSession({
        user: flags.user,
        ...(flags.id === undefined ? {} : { sessionId: flags.id }),
        ...(flags.purpose === undefined ? {} : { purpose: flags.purpose }),
        ...(flags.model === undefined ? {} : { model: flags.model }),
        ...(flags.ttl === undefined ? {} : { ttl: flags.ttl }),
      });
      this.log(session.sessionId);
      const output = { json: this.jsonEnabled(), signal: this.interruptSignal() };
      const reply = flags.prompt === undefined ? null : await printTurn(fleet, session, flags.prompt, output);
      await fleet.leaveSession(session);
      return { session: await fleet.sessionOf(session.sessionId, flags.user), reply };
    });
  }
}
