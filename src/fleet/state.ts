import type { Config } from "../config/schema.js";
import { refuseOtherSettings } from "../hosts/serving-note.js";
import { instanceOf, ownHostName, refuseRenamed } from "../runtime/files/host-note.js";
import { checkStateFolder } from "../store/file/state-folder.js";
import { openStore } from "../store/open.js";
import type { Store } from "../store/ports.js";

/** @throws FleetError when the state folder is not safe, or a `serve` uses it with other settings. */
export function checkState(config: Config, stateRoot: string): void {
  checkStateFolder(stateRoot);
  refuseOtherSettings(config, stateRoot);
  refuseRenamed(config, stateRoot);
}

/** The store that the configuration names: "file", or a Redis URL. */
export function storeUrl({ store }: Config): string {
  return store.kind === "file" ? "file" : store.url;
}

export function openState(config: Config, stateRoot: string, url = storeUrl(config)): Store {
  if (url === "file") return openStore("file", stateRoot);
  return openStore(
    url,
    stateRoot,
    ownHostName(config, stateRoot),
    () => instanceOf(stateRoot),
    config.storeOptions.keyFile,
  );
}
