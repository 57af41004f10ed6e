"""A master key in AWS KMS: it makes and unwraps the data keys of a bundle's files, and never leaves there.

Region and credentials come from the usual AWS_* variables, AWS_ENDPOINT_URL_KMS for a KMS that is not Amazon's. To
encrypt needs kms:GenerateDataKey, to decrypt kms:Decrypt.
"""

import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from train.errors import ConfigError, StorageError, TrustError

SCHEME = "kms://"
TIMEOUT_SECONDS = 20
MOST_BYTES = 6_144  # of what KMS wraps
_TAMPERED = {"InvalidCiphertextException", "IncorrectKeyException"}
_REFUSED = {
    "AccessDeniedException": "its policy must allow kms:GenerateDataKey to encrypt and kms:Decrypt to decrypt",
    "DisabledException": "it is disabled: enable it",
    "ExpiredTokenException": "renew the credentials",
    "IncompleteSignatureException": "correct the credentials",
    "InvalidKeyUsageException": "it must be a symmetric key to encrypt and decrypt",
    "InvalidSignatureException": "correct the credentials",
    "KMSInvalidStateException": "it is not enabled",
    "NotFoundException": "there is no such key in this region",
    "UnrecognizedClientException": "correct the credentials",
    "ValidationException": "it must be a key id, an ARN or alias/NAME",
}


class Kms:
    """A symmetric key of AWS KMS.

    Args:
        reference: kms://KEY, KEY being an id, an ARN or alias/NAME; a manifest holds it as it is.

    Raises:
        ConfigError: `reference` names no key.
    """

    def __init__(self, reference: str) -> None:
        self.reference, self._key = reference, reference.removeprefix(SCHEME)
        if not reference.startswith(SCHEME) or not self._key:
            raise ConfigError(
                f"a key in AWS KMS is given as kms://KEY (an id, an ARN or alias/NAME); got {reference!r}"
            )

    def __repr__(self) -> str:
        return f"Kms({self.reference})"

    @cached_property
    def _client(self) -> Any:
        import boto3  # half a second that a bundle without KMS does not spend
        from botocore.config import Config

        arn = self._key.split(":")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_KMS") or os.environ.get("AWS_ENDPOINT_URL")
        region = arn[3] if len(arn) > 5 else os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        retries = {"mode": "standard", "total_max_attempts": 3}
        config = Config(connect_timeout=TIMEOUT_SECONDS, read_timeout=TIMEOUT_SECONDS, retries=retries)
        session = boto3.session.Session(region_name=region or ("us-east-1" if endpoint else None))
        return session.client("kms", endpoint_url=endpoint, config=config)

    def new_data_key(self, name: str) -> tuple[bytes, bytes]:
        """Return a new key for the file `name`, and that key wrapped.

        Raises:
            ConfigError: KMS does not let us, or has no such key.
            StorageError: KMS cannot be reached.
        """
        answer = self._ask("generate_data_key", name, KeySpec="AES_256")
        return answer["Plaintext"], answer["CiphertextBlob"]

    def unwrap(self, wrapped: bytes, name: str) -> bytes:
        """Return the key of the file `name`.

        Raises:
            TrustError: this key did not wrap it for that.
            ConfigError, StorageError: as `new_data_key`.
        """
        if not 0 < len(wrapped) <= MOST_BYTES:
            raise TrustError(f"the wrapped key of {name} has {len(wrapped):,} bytes, which none of KMS has")
        return self._ask("decrypt", name, CiphertextBlob=wrapped)["Plaintext"]

    def _ask(self, action: str, name: str, **arguments: Any) -> Mapping[str, bytes]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            # KMS binds the context to the wrapped key, as associated data.
            context = {"fullcycle-file": name}
            call = getattr(self._client, action)
            answer: Mapping[str, bytes] = call(KeyId=self._key, EncryptionContext=context, **arguments)
        except (BotoCoreError, ClientError) as error:
            raise self._explained(error, name) from error
        return answer

    def _explained(self, error: Exception, name: str) -> Exception:
        from botocore.exceptions import NoCredentialsError, NoRegionError, PartialCredentialsError

        code = str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))
        if code in _TAMPERED:
            return TrustError(f"the wrapped key of {name} is not one that {self.reference} made for it")
        if code in _REFUSED:
            return ConfigError(f"{self.reference} cannot be used: {_REFUSED[code]} ({error})")
        if isinstance(error, NoCredentialsError | PartialCredentialsError | NoRegionError):
            return ConfigError(
                f"no credentials or region for {self.reference} ({error}): set AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY and AWS_REGION, or give this machine a role"
            )
        return StorageError(f"{self.reference} cannot be used now: {error}. Start again when KMS is there.")
