import type { UserEntry } from "../../../hosts/gather.js";
import { listFlags } from "../../flags/flags.js";
import { ListCommand } from "../../list-command.js";
import { USERS } from "../../render/columns.js";

export default class UserList extends ListCommand {
  static override summary = "List the users who have a session, a server or a token, or are suspended.";
  static override examples = ["<%= config.bin %> user list", "<%= config.bin %> user list --json"];
  static override flags = listFlags(USERS);

  async run(): Promise<{ users: UserEntry[] }> {
    const { flags } = await this.parse(UserList);
    return await this.printList(USERS, flags, async (fleet) => ({
      rows: await fleet.users.list(),
      resultOf: (users) => ({ users }),
      none: "No users.",
    }));
  }
}
