import type { Environment } from "../config/load/paths.js";
import type { Config } from "../config/schema.js";
import { instanceOf, ownHostName, refuseRenamed } from "../runtime/files/shared-storage.js";
import { refuseOtherSettings } from "../serve/host-lock.js";
import { checkStateFolder } from "../store/file/state-folder.js";
import { openStore, type Store } from "../store/store.js";

/** The store that the configuration names: "file", or a Redis URL. */
export function storeUrl({ store }: Config): string {
  return store.kind === "file" ? "file" : store.url;
}

/** @throws FleetError when the state folder is not safe, or a `serve` uses it with other settings */
export function openState(config: Config, stateRoot: string, env: Environment, url = storeUrl(config)): Store {
  checkStateFolder(stateRoot);
  refuseOtherSettings(config, stateRoot);
  refuseRenamed(config, stateRoot);
  if (url === "file") return openStore("file", stateRoot);
  return openStore(url, stateRoot, {
    host: ownHostName(config, stateRoot),
    instance: () => instanceOf(stateRoot),
    secrets: { ...config.storeOptions, env },
  });
}
