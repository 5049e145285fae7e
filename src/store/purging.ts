import { FleetError, quote } from "../errors.js";
import type { Store } from "./ports.js";

/** Call this before anything begins for a user. @throws FleetError `FLEET_PURGE_UNDER_WAY` during the user's purge */
export async function refuseErased({ purges }: Pick<Store, "purges">, user: string): Promise<void> {
  if ((await purges.read(user)) === null) return;
  throw new FleetError("FLEET_PURGE_UNDER_WAY", `The data of user ${quote(user)} is being erased.`, {
    suggestions: [`copilotfleet user purge ${user} # finishes it, and shows what remains`],
  });
}
